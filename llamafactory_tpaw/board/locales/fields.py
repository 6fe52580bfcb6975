# SPDX-License-Identifier: Apache-2.0
"""Labels and infos of the elements of "TPAW configurations", in LlamaBoard's languages."""

from .language import Translations, labelled, titled


RUN: dict[str, Translations] = {
    "tpaw_tab": titled(
        en="TPAW configurations",
        ru="Конфигурации TPAW",
        zh="TPAW 参数设置",
        ko="TPAW 설정",
        ja="TPAW 設定",
    ),
    "tpaw_run": labelled(
        en=("Run", "Self-play run whose iterations are on disk, or a new name."),
        ru=("Запуск", "Запуск самоигры, итерации которого есть на диске, или новое имя."),
        zh=("运行名称", "磁盘上已有的自博弈运行，或新的名称。"),
        ko=("실행 이름", "디스크에 있는 셀프 플레이 실행, 또는 새 이름."),
        ja=("ラン名", "ディスク上のセルフプレイのラン、または新しい名前。"),
    ),
    "tpaw_iteration": labelled(
        en=("Iteration", "Iteration t starts from θ_t and produces θ_{t+1}."),
        ru=("Итерация", "Итерация t начинается с θ_t и даёт θ_{t+1}."),
        zh=("迭代轮次", "第 t 轮从 θ_t 出发，得到 θ_{t+1}。"),
        ko=("이터레이션", "이터레이션 t는 θ_t에서 시작해 θ_{t+1}을 만듭니다."),
        ja=("イテレーション", "イテレーション t は θ_t から始め、θ_{t+1} を作ります。"),
    ),
    "tpaw_iterations": labelled(
        en=("Iterations to play", "How many iterations are played one after the other."),
        ru=("Число итераций", "Сколько итераций выполнить одну за другой."),
        zh=("连续迭代数", "依次执行的迭代轮数。"),
        ko=("실행할 이터레이션 수", "차례로 실행할 이터레이션의 수."),
        ja=("実行するイテレーション数", "順番に実行するイテレーションの数。"),
    ),
    "tpaw_objective": labelled(
        en=("Objective", "The loss of self-play."),
        ru=("Целевая функция", "Функция потерь самоигры."),
        zh=("训练目标", "自博弈的损失函数。"),
        ko=("목적 함수", "셀프 플레이의 손실 함수."),
        ja=("目的関数", "セルフプレイの損失関数。"),
    ),
    "tpaw_team_size": labelled(
        en=("Team size", "Most past checkpoints that are players."),
        ru=("Размер команды", "Наибольшее число прошлых контрольных точек в роли игроков."),
        zh=("团队规模", "作为玩家的历史检查点的最大数量。"),
        ko=("팀 크기", "플레이어가 되는 과거 체크포인트의 최대 수."),
        ja=("チームサイズ", "プレイヤーになる過去のチェックポイントの最大数。"),
    ),
    "tpaw_eta": labelled(
        en=("Eta", "Target weight where the target reward is not positive."),
        ru=("Эта", "Вес целевого ответа, когда его вознаграждение не положительно."),
        zh=("Eta 参数", "目标回答的奖励不为正时的目标权重。"),
        ko=("에타 값", "목표 응답의 보상이 양수가 아닐 때의 목표 가중치."),
        ja=("Eta 値", "目標応答の報酬が正でないときの目標の重み。"),
    ),
    "tpaw_gamma": labelled(
        en=("Gamma", "Sharpness of the player weights; 0 is the plain average."),
        ru=("Гамма", "Резкость весов игроков; 0 даёт простое среднее."),
        zh=("Gamma 参数", "玩家权重的尖锐程度；0 表示取平均。"),
        ko=("감마 값", "플레이어 가중치의 날카로움. 0이면 단순 평균입니다."),
        ja=("Gamma 値", "プレイヤーの重みの鋭さ。0 は単純平均。"),
    ),
    "tpaw_reward_scale": labelled(
        en=("Reward scale", "Factor λ from log-ratios to rewards."),
        ru=("Масштаб вознаграждения", "Множитель λ от логарифмов отношений к вознаграждениям."),
        zh=("奖励系数", "由对数概率比得到奖励的系数 λ。"),
        ko=("보상 스케일", "로그 비율을 보상으로 바꾸는 계수 λ."),
        ja=("報酬スケール", "対数比を報酬に換算する係数 λ。"),
    ),
    "tpaw_scale": labelled(
        en=("T-SPIN scale", "Factor a on the log-prob differences."),
        ru=("Масштаб T-SPIN", "Множитель a перед разностями логарифмов вероятностей."),
        zh=("T-SPIN 系数", "对数概率差的系数 a。"),
        ko=("T-SPIN 스케일", "로그 확률 차이에 곱하는 계수 a."),
        ja=("T-SPIN スケール", "対数確率の差に掛ける係数 a。"),
    ),
    "tpaw_history_weight": labelled(
        en=("History weight", "Weight b of the term against y_0."),
        ru=("Вес истории", "Вес b слагаемого относительно y_0."),
        zh=("历史权重", "与 y_0 对比的损失项的权重 b。"),
        ko=("히스토리 가중치", "y_0에 대한 항의 가중치 b."),
        ja=("履歴の重み", "y_0 に対する項の重み b。"),
    ),
    "tpaw_players": labelled(
        en=("Players", "Checkpoints θ_0, θ_1, … of the run, oldest first."),
        ru=("Игроки", "Контрольные точки θ_0, θ_1, … запуска, от старых к новым."),
        zh=("玩家", "本次运行的检查点 θ_0、θ_1……，由旧到新。"),
        ko=("플레이어", "실행의 체크포인트 θ_0, θ_1, …, 오래된 것부터."),
        ja=("プレイヤー", "ランのチェックポイント θ_0、θ_1、…（古い順）。"),
    ),
    "tpaw_reference": labelled(
        en=("Reference mode", "Score the players once and keep it, or in every step."),
        ru=("Режим эталонов", "Оценивать игроков один раз и хранить или на каждом шаге."),
        zh=("参考模式", "玩家只评分一次并缓存，或每一步都评分。"),
        ko=("레퍼런스 모드", "플레이어 점수를 한 번 계산해 보관하거나 매 스텝 계산합니다."),
        ja=("リファレンスモード", "プレイヤーの採点を一度だけ行い保存するか、毎ステップ行うか。"),
    ),
    "tpaw_grouping": labelled(
        en=("Grouping", "Keep the triplets of a prompt together in a batch."),
        ru=("Группировка", "Держать тройки одного промпта вместе в батче."),
        zh=("分组方式", "将同一提示词的三元组放在同一批次中。"),
        ko=("그룹화", "한 프롬프트의 트리플릿을 배치 안에 함께 둡니다."),
        ja=("グループ化", "同じプロンプトのトリプレットをバッチ内でまとめます。"),
    ),
    "tpaw_cache_dir": labelled(
        en=("Cache dir", "Folder of the players' log-probs."),
        ru=("Каталог кэша", "Каталог логарифмов вероятностей игроков."),
        zh=("缓存目录", "保存玩家对数概率的路径。"),
        ko=("캐시 디렉토리", "플레이어의 로그 확률을 저장할 디렉토리."),
        ja=("キャッシュディレクトリ", "プレイヤーの対数確率を保存するパス。"),
    ),
    "tpaw_trust_remote_code": labelled(
        en=("Trust remote code", "Run code that a model's repository brings along."),
        ru=("Доверять удалённому коду", "Выполнять код из репозитория модели."),
        zh=("信任远程代码", "允许执行模型仓库自带的代码。"),
        ko=("원격 코드 신뢰", "모델 저장소에 포함된 코드를 실행합니다."),
        ja=("リモートコードを信頼", "モデルのリポジトリに含まれるコードを実行します。"),
    ),
}

GENERATION: dict[str, Translations] = {
    "tpaw_prompts": labelled(
        en=("Prompts", "SFT dataset whose prompts are answered."),
        ru=("Промпты", "Набор данных SFT, на промпты которого даются ответы."),
        zh=("提示词数据集", "用于生成回答的 SFT 数据集。"),
        ko=("프롬프트 데이터셋", "응답을 생성할 프롬프트가 있는 SFT 데이터셋."),
        ja=("プロンプト", "応答を生成するプロンプトを含む SFT データセット。"),
    ),
    "tpaw_max_prompts": labelled(
        en=("Max prompts", "How many prompts are used; empty for all."),
        ru=("Максимум промптов", "Сколько промптов использовать; пусто — все."),
        zh=("最大提示词数", "使用的提示词数量；留空表示全部。"),
        ko=("최대 프롬프트 수", "사용할 프롬프트 수. 비우면 모두 사용합니다."),
        ja=("最大プロンプト数", "使用するプロンプトの数。空欄はすべて。"),
    ),
    "tpaw_engine": labelled(
        en=("Generation engine", "What samples the responses."),
        ru=("Движок генерации", "Что сэмплирует ответы."),
        zh=("生成引擎", "用于采样回答的引擎。"),
        ko=("생성 엔진", "응답을 샘플링하는 엔진."),
        ja=("生成エンジン", "応答をサンプリングするエンジン。"),
    ),
    "tpaw_engine_url": labelled(
        en=("Engine URL", "Servers of engine openai, separated by commas."),
        ru=("URL движка", "Серверы для движка openai, через запятую."),
        zh=("引擎 URL", "openai 引擎的服务器地址，以逗号分隔。"),
        ko=("엔진 URL", "openai 엔진의 서버 주소, 쉼표로 구분."),
        ja=("エンジン URL", "openai エンジンのサーバー（カンマ区切り）。"),
    ),
    "tpaw_temperature": labelled(
        en=("Temperature", "Of the generated responses."),
        ru=("Температура", "Для генерируемых ответов."),
        zh=("温度系数", "生成回答时的温度。"),
        ko=("온도", "응답을 생성할 때의 온도."),
        ja=("温度", "応答を生成するときの温度。"),
    ),
    "tpaw_top_p": labelled(
        en=("Top-p", "Of the generated responses."),
        ru=("Лучшие-p", "Для генерируемых ответов."),
        zh=("Top-p 采样值", "生成回答时的核采样。"),
        ko=("Top-p", "응답을 생성할 때의 Top-p."),
        ja=("Top-p", "応答を生成するときの Top-p。"),
    ),
    "tpaw_top_k": labelled(
        en=("Top-k", "Of the generated responses; 0 for no limit."),
        ru=("Лучшие-k", "Для генерируемых ответов; 0 — без ограничения."),
        zh=("Top-k 采样值", "生成回答时的 Top-k；0 表示不限制。"),
        ko=("Top-k", "응답을 생성할 때의 Top-k. 0은 제한 없음."),
        ja=("Top-k", "応答を生成するときの Top-k。0 は制限なし。"),
    ),
    "tpaw_max_new_tokens": labelled(
        en=("Maximum new tokens", "Longest generated response."),
        ru=("Максимальное количество новых токенов", "Самый длинный генерируемый ответ."),
        zh=("最大生成长度", "生成回答的最大 token 数。"),
        ko=("응답의 최대 길이", "생성 응답의 최대 토큰 수."),
        ja=("最大生成長", "生成する応答の最大トークン数。"),
    ),
    "tpaw_samples_per_prompt": labelled(
        en=("Samples per prompt", "Responses sampled for each prompt."),
        ru=("Ответов на промпт", "Сколько ответов сэмплировать на каждый промпт."),
        zh=("每个提示词的采样数", "为每个提示词采样的回答数量。"),
        ko=("프롬프트당 샘플 수", "프롬프트마다 샘플링할 응답의 수."),
        ja=("プロンプトごとのサンプル数", "各プロンプトでサンプリングする応答の数。"),
    ),
}

RESULTS: dict[str, Translations] = {
    "tpaw_charts": titled(
        en="Loss, target reward, margin and player weights",
        ru="Потери, вознаграждение цели, разница вознаграждений и веса игроков",
        zh="损失、目标奖励、奖励间隔与玩家权重",
        ko="손실, 목표 보상, 마진, 플레이어 가중치",
        ja="損失・目標報酬・マージン・プレイヤーの重み",
    ),
    "tpaw_summary": titled(
        en="Accuracy per θ",
        ru="Точность по θ",
        zh="各 θ 的准确率",
        ko="θ별 정확도",
        ja="θ ごとの精度",
    ),
    "tpaw_report": titled(
        en="Report",
        ru="Отчёт",
        zh="报告",
        ko="보고서",
        ja="レポート",
    ),
}

TRAIN = {**RUN, **GENERATION, **RESULTS}
