# SPDX-License-Identifier: Apache-2.0
"""Hover help of "TPAW configurations", in LlamaBoard's languages: what a value does and when to change it."""

from .language import Translations, said


RUN: dict[str, Translations] = {
    "tpaw_run": said(
        en="Choosing a run fills in what its iterations on disk were played with. A new name begins a new run.",
        ru="Выбор запуска подставляет настройки его итераций на диске. Новое имя начинает новый запуск.",
        zh="选择运行后，将填入磁盘上该运行各轮迭代的设置。填写新名称则开始新的运行。",
        ko="실행을 선택하면 디스크에 있는 이터레이션의 설정을 채웁니다. 새 이름을 쓰면 새 실행을 시작합니다.",
        ja="ランを選ぶと、ディスク上のイテレーションの設定が入力されます。新しい名前なら新しいランを始めます。",
    ),
    "tpaw_iteration": said(
        en="Choosing an iteration fills in model, players, datasets and output folder. Iteration 0 starts from the "
        "SFT model θ_0.",
        ru="Выбор итерации подставляет модель, игроков, наборы данных и выходной каталог. Итерация 0 начинается с "
        "модели SFT θ_0.",
        zh="选择迭代后，将填入模型、玩家、数据集和输出目录。第 0 轮从 SFT 模型 θ_0 开始。",
        ko="이터레이션을 선택하면 모델, 플레이어, 데이터셋, 출력 디렉토리를 채웁니다. 이터레이션 0은 SFT 모델 "
        "θ_0에서 시작합니다.",
        ja="イテレーションを選ぶと、モデル、プレイヤー、データセット、出力ディレクトリが入力されます。0 は SFT モデル "
        "θ_0 から始めます。",
    ),
    "tpaw_iterations": said(
        en="Each iteration starts from the model that the one before it produced. Finished ones are skipped.",
        ru="Каждая итерация начинается с модели, полученной в предыдущей. Завершённые пропускаются.",
        zh="每轮迭代都从上一轮得到的模型开始。已完成的迭代会被跳过。",
        ko="각 이터레이션은 바로 앞 이터레이션이 만든 모델에서 시작합니다. 완료된 것은 건너뜁니다.",
        ja="各イテレーションは前のイテレーションが作ったモデルから始めます。完了したものは飛ばします。",
    ),
    "tpaw_objective": said(
        en="tpaw judges the responses by a team of past checkpoints with adaptive weights. tspin (T-SPIN) needs no "
        "reference model.",
        ru="tpaw оценивает ответы командой прошлых контрольных точек с адаптивными весами. tspin (T-SPIN) не требует "
        "эталонной модели.",
        zh="tpaw 由历史检查点组成的团队以自适应权重评判回答。tspin（T-SPIN）不需要参考模型。",
        ko="tpaw는 과거 체크포인트로 이루어진 팀이 적응형 가중치로 응답을 평가합니다. tspin(T-SPIN)은 참조 모델이 "
        "필요 없습니다.",
        ja="tpaw は過去のチェックポイントのチームが適応的な重みで応答を評価します。tspin（T-SPIN）"
        "は参照モデルが不要です。",
    ),
    "tpaw_team_size": said(
        en="The newest checkpoints and as many rounds of triplets are used; with fewer iterations played, all of "
        "them. 1 is SPIN's single opponent.",
        ru="Используются новейшие контрольные точки и столько же раундов троек; если итераций меньше — все. 1 "
        "соответствует единственному сопернику SPIN.",
        zh="使用最新的检查点和同样轮数的三元组；迭代不足时使用全部。1 即 SPIN 的单一对手。",
        ko="가장 최근의 체크포인트와 같은 수의 트리플릿 라운드를 사용합니다. 부족하면 모두 사용합니다. 1은 SPIN의 "
        "단일 상대입니다.",
        ja="最新のチェックポイントと同数のラウンドのトリプレットを使います。足りなければすべて使います。1 は SPIN "
        "の単一の"
        "相手です。",
    ),
    "tpaw_eta": said(
        en="Where a player finds the target no likelier than before, its reward counts eta times, so that the target "
        "is not unlearned. 1 switches this off.",
        ru="Если по оценке игрока целевой ответ не стал вероятнее, его вознаграждение учитывается с весом эта, чтобы "
        "цель не забывалась. 1 отключает это.",
        zh="若相对某玩家目标回答的概率没有提高，其奖励按 eta 倍计算，以免遗忘目标。1 表示关闭。",
        ko="어떤 플레이어에 비해 목표 응답의 확률이 높아지지 않았으면 그 보상을 에타 배로 계산해 목표를 잊지 않게 "
        "합니다. "
        "1이면 사용하지 않습니다.",
        ja="あるプレイヤーに比べて目標応答の確率が上がっていないとき、その報酬を eta 倍にし、目標の忘却を防ぎます。1 "
        "で無効。",
    ),
    "tpaw_gamma": said(
        en="The weights of the players are a softmax of -gamma times the margins: players against which the margin "
        "is small count more.",
        ru="Веса игроков — softmax от −гамма, умноженной на разницу вознаграждений: игроки с малой разницей весят "
        "больше.",
        zh="玩家权重是对 -gamma 乘以奖励间隔取 softmax：间隔越小的玩家权重越大。",
        ko="플레이어 가중치는 -감마 × 마진의 softmax입니다. 마진이 작은 플레이어일수록 가중치가 큽니다.",
        ja="プレイヤーの重みは -gamma × マージンの softmax です。マージンが小さいプレイヤーほど重くなります。",
    ),
    "tpaw_reward_scale": said(
        en="Larger values hold the policy closer to the players. 0.1 is SPIN's choice.",
        ru="Большие значения удерживают политику ближе к игрокам. 0,1 — выбор SPIN.",
        zh="取值越大，策略越接近各玩家。0.1 是 SPIN 的取值。",
        ko="값이 클수록 정책이 플레이어에 더 가깝게 유지됩니다. 0.1은 SPIN의 선택입니다.",
        ja="大きいほど方策がプレイヤーの近くに保たれます。0.1 は SPIN の値です。",
    ),
    "tpaw_scale": said(
        en="Only of objective tspin. Larger values let the loss saturate at smaller differences.",
        ru="Только для цели tspin. При больших значениях потери насыщаются при меньших разностях.",
        zh="仅用于 tspin 目标。取值越大，损失在更小的差值处饱和。",
        ko="tspin 목적 함수에만 쓰입니다. 값이 클수록 더 작은 차이에서 손실이 포화됩니다.",
        ja="目的関数 tspin のみ。大きいほど小さな差で損失が飽和します。",
    ),
    "tpaw_history_weight": said(
        en="Only of objective tspin, from iteration 1: how much the responses of θ_0 hold the model back.",
        ru="Только для цели tspin, с итерации 1: насколько ответы θ_0 удерживают модель.",
        zh="仅用于 tspin 目标，从第 1 轮起：θ_0 的回答对模型的约束强度。",
        ko="tspin 목적 함수에만, 이터레이션 1부터 쓰입니다. θ_0의 응답이 모델을 얼마나 붙잡아 두는지를 정합니다.",
        ja="目的関数 tspin のみ、イテレーション 1 以降：θ_0 の応答がモデルを引き留める強さ。",
    ),
    "tpaw_players": said(
        en="Oldest first; the last one is the model that plays and is trained. The newest ones form the team.",
        ru="От старых к новым; последняя — модель, которая играет и обучается. Новейшие образуют команду.",
        zh="由旧到新；最后一个是参与博弈并被训练的模型。最新的若干个组成团队。",
        ko="오래된 것부터 적습니다. 마지막이 플레이하며 학습되는 모델이고, 최근 것들이 팀을 이룹니다.",
        ja="古い順。最後がプレイし学習されるモデルです。新しいものがチームになります。",
    ),
    "tpaw_reference": said(
        en="cached: one player in memory at a time, log-probs kept on disk. online: all players in memory, scored in "
        "every step, for comparison.",
        ru="cached: в памяти один игрок, логарифмы вероятностей хранятся на диске. online: в памяти все игроки, "
        "оценка на каждом шаге, для сравнения.",
        zh="cached：内存中一次只有一个玩家，对数概率保存在磁盘。online：所有玩家常驻内存，每步评分，用于对比。",
        ko="cached: 메모리에 플레이어를 하나씩만 올리고 로그 확률을 디스크에 보관합니다. online: 모든 플레이어를 "
        "메모리에 "
        "두고 매 스텝 계산합니다(비교용).",
        ja="cached：メモリには一度に 1 プレイヤー、対数確率はディスクに保存。online："
        "全員をメモリに置き毎ステップ採点（比較用）。",
    ),
    "tpaw_grouping": said(
        en="prompt: the triplets of a prompt follow one another and their target is forwarded once. none: plain "
        "order, each pair by itself.",
        ru="prompt: тройки одного промпта идут подряд, их целевой ответ вычисляется один раз. none: обычный порядок, "
        "каждая пара отдельно.",
        zh="prompt：同一提示词的三元组相邻，目标只前向计算一次。none：普通顺序，每对单独计算。",
        ko="prompt: 한 프롬프트의 트리플릿을 이어서 처리하고 목표는 한 번만 계산합니다. none: 원래 순서대로 쌍마다 "
        "따로 "
        "계산합니다.",
        ja="prompt：同じプロンプトのトリプレットを続けて処理し、目標の計算は 1 回。none：通常の順序で組ごとに計算。",
    ),
    "tpaw_cache_dir": said(
        en="Shared by all runs: a sequence is scored once by each player. Deleting it is safe, it is scored again.",
        ru="Общий для всех запусков: каждый игрок оценивает последовательность один раз. Удалять безопасно: оценка "
        "повторится.",
        zh="所有运行共用：每个玩家对每条序列只评分一次。可以安全删除，届时会重新评分。",
        ko="모든 실행이 함께 씁니다. 플레이어마다 시퀀스를 한 번만 계산합니다. 지워도 안전하며 다시 계산됩니다.",
        ja="全ランで共有し、各プレイヤーは各シーケンスを一度だけ採点します。削除しても再採点されるだけです。",
    ),
    "tpaw_trust_remote_code": said(
        en="Off unless you know the repository: its code runs with your rights on this machine.",
        ru="Включайте, только если знаете репозиторий: его код выполняется на этой машине с вашими правами.",
        zh="除非了解该仓库，否则请保持关闭：其代码将以您的权限在本机运行。",
        ko="저장소를 잘 아는 경우가 아니면 끄십시오. 그 코드가 이 컴퓨터에서 사용자 권한으로 실행됩니다.",
        ja="リポジトリを信頼できる場合以外はオフに。そのコードがこのマシンであなたの権限で実行されます。",
    ),
}

GENERATION: dict[str, Translations] = {
    "tpaw_prompts": said(
        en="An SFT set of dataset_info.json: its responses are the targets. Without it nothing is generated and the "
        "chosen datasets must exist.",
        ru="Набор SFT из dataset_info.json: его ответы — целевые. Без него ничего не генерируется, и выбранные наборы "
        "должны существовать.",
        zh="dataset_info.json 中的 SFT 数据集，其回答即为目标。留空则不生成，所选数据集必须已存在。",
        ko="dataset_info.json의 SFT 데이터셋이며 그 응답이 목표가 됩니다. 비우면 생성하지 않으므로 선택한 데이터셋이 "
        "있어야 "
        "합니다.",
        ja="dataset_info.json の SFT データセットで、その応答が目標になります。空欄なら生成せず、"
        "選択したデータセットが必要です。",
    ),
    "tpaw_max_prompts": said(
        en="Chosen once and the same in all iterations, whatever the seed is.",
        ru="Выбираются один раз и одинаковы во всех итерациях при любом seed.",
        zh="只选取一次，所有迭代相同，与随机种子无关。",
        ko="한 번만 선택되며 시드와 관계없이 모든 이터레이션에서 같습니다.",
        ja="一度だけ選ばれ、シードに関係なく全イテレーションで同じです。",
    ),
    "tpaw_engine": said(
        en="hf: transformers, needs nothing more. vllm: starts and stops vLLM's server. openai: asks servers that "
        "run already.",
        ru="hf: transformers, больше ничего не нужно. vllm: запускает и останавливает сервер vLLM. openai: обращается "
        "к работающим серверам.",
        zh="hf：使用 transformers，无需其他依赖。vllm：自动启动和停止 vLLM 服务。openai：请求已在运行的服务。",
        ko="hf: transformers만 있으면 됩니다. vllm: vLLM 서버를 시작하고 종료합니다. openai: 이미 실행 중인 서버에 "
        "요청합니다.",
        ja="hf：transformers だけで動作。vllm：vLLM サーバーを起動・停止。openai：稼働中のサーバーに問い合わせ。",
    ),
    "tpaw_engine_url": said(
        en="Such as http://host:8000/v1; requests are spread over several. A key is read from TPAW_ENGINE_API_KEY "
        "only.",
        ru="Например, http://host:8000/v1; запросы распределяются по серверам. Ключ читается только из "
        "TPAW_ENGINE_API_KEY.",
        zh="例如 http://host:8000/v1；请求会分发到多个服务器。密钥只从 TPAW_ENGINE_API_KEY 读取。",
        ko="예: http://host:8000/v1. 여러 서버에 요청을 나눕니다. 키는 TPAW_ENGINE_API_KEY에서만 읽습니다.",
        ja="例：http://host:8000/v1。複数あれば分散します。キーは TPAW_ENGINE_API_KEY からのみ読みます。",
    ),
    "tpaw_temperature": said(
        en="1 samples from the model as it is, as self-play assumes; lower values make responses more alike.",
        ru="1 — сэмплирование из самой модели, как предполагает самоигра; меньшие значения делают ответы "
        "однообразнее.",
        zh="1 表示按模型本身的分布采样，符合自博弈的假设；取值越低，回答越趋同。",
        ko="1이면 모델의 분포 그대로 샘플링하며, 셀프 플레이가 가정하는 값입니다. 낮을수록 응답이 서로 비슷해집니다.",
        ja="1 はモデルの分布そのままのサンプリングで、セルフプレイの前提です。低いほど応答が似通います。",
    ),
    "tpaw_top_p": said(
        en="Samples from the likeliest tokens that together reach this probability; 1 from all.",
        ru="Сэмплирование из самых вероятных токенов с этой суммарной вероятностью; 1 — из всех.",
        zh="从累计概率达到该值的最可能 token 中采样；1 表示全部。",
        ko="누적 확률이 이 값에 이르는 가장 그럴듯한 토큰에서 샘플링합니다. 1이면 모든 토큰입니다.",
        ja="累積確率がこの値に達する上位トークンからサンプリングします。1 はすべて。",
    ),
    "tpaw_top_k": said(
        en="Samples from that many likeliest tokens only; 0 from all.",
        ru="Сэмплирование только из стольких самых вероятных токенов; 0 — из всех.",
        zh="只从概率最高的若干个 token 中采样；0 表示全部。",
        ko="가장 그럴듯한 토큰 중 이 개수에서만 샘플링합니다. 0이면 모든 토큰입니다.",
        ja="確率の高い順にこの数のトークンからのみサンプリングします。0 はすべて。",
    ),
    "tpaw_max_new_tokens": said(
        en="A response that reaches the limit counts as truncated and gets no end of turn in training. Cutoff length "
        "bounds it too.",
        ru="Ответ, достигший предела, считается обрезанным и при обучении не получает конца реплики. Ограничивает "
        "и длина обрезки.",
        zh="达到上限的回答视为截断，训练时不加结束标记。同时受截断长度限制。",
        ko="한도에 이른 응답은 잘린 것으로 보며 학습할 때 턴의 끝을 붙이지 않습니다. 컷오프 길이도 적용됩니다.",
        ja="上限に達した応答は切断とみなし、学習時にターンの終わりを付けません。カットオフ長の制限も受けます。",
    ),
    "tpaw_samples_per_prompt": said(
        en="Every response makes a triplet, so an epoch has that many times the steps.",
        ru="Каждый ответ образует тройку, поэтому в эпохе во столько же раз больше шагов.",
        zh="每个回答构成一个三元组，因此每轮训练的步数相应成倍增加。",
        ko="응답마다 트리플릿이 하나 생기므로 에포크의 스텝 수가 그만큼 늘어납니다.",
        ja="応答ごとにトリプレットができるため、1 エポックのステップ数がその倍になります。",
    ),
}

RESULTS: dict[str, Translations] = {
    "tpaw_charts": said(
        en="The target reward should not sink far below zero, and the margin should rise.",
        ru="Вознаграждение цели не должно падать намного ниже нуля, а разница вознаграждений должна расти.",
        zh="目标奖励不应远低于零，奖励间隔应上升。",
        ko="목표 보상이 0보다 크게 낮아지지 않고 마진이 커져야 합니다.",
        ja="目標報酬が 0 を大きく下回らず、マージンが上がるのが望ましい状態です。",
    ),
    "tpaw_summary": said(
        en="Reward accuracy: share of triplets whose target has the higher reward. Held-out needs a validation size.",
        ru="Точность вознаграждений: доля троек, в которых вознаграждение цели выше. Для валидации нужен её размер.",
        zh="奖励准确率：目标奖励更高的三元组所占比例。验证集准确率需设置验证集比例。",
        ko="보상 정확도: 목표의 보상이 더 높은 트리플릿의 비율. 검증 정확도에는 검증 데이터셋 크기가 필요합니다.",
        ja="報酬精度：目標の報酬の方が高いトリプレットの割合。検証精度には検証セットサイズが必要です。",
    ),
    "tpaw_report": said(
        en="Curves, settings and where each checkpoint comes from, in one page.",
        ru="Кривые, настройки и происхождение каждой контрольной точки на одной странице.",
        zh="在一个页面中展示曲线、设置以及每个检查点的来源。",
        ko="곡선, 설정, 각 체크포인트의 출처를 한 페이지에 담았습니다.",
        ja="曲線、設定、各チェックポイントの由来を 1 ページにまとめます。",
    ),
}

TRAIN = {**RUN, **GENERATION, **RESULTS}
