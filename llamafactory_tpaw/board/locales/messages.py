# SPDX-License-Identifier: Apache-2.0
"""What the page says beside its elements: phases of a run, results, warnings, choices."""

from .language import Translations, said


PROGRESS: dict[str, Translations] = {
    "phase_check": said(en="Checks", ru="Проверки", zh="检查", ko="검사", ja="チェック"),
    "phase_generation": said(en="Generation", ru="Генерация", zh="生成", ko="생성", ja="生成"),
    "phase_scoring": said(
        en="Scoring {player}",
        ru="Оценка игроком {player}",
        zh="{player} 评分",
        ko="{player} 점수 계산",
        ja="{player} の採点",
    ),
    "phase_loading": said(
        en="Loading the model", ru="Загрузка модели", zh="加载模型", ko="모델 불러오는 중", ja="モデルを読み込み中"
    ),
    "phase_training": said(en="Training", ru="Обучение", zh="训练", ko="학습", ja="トレーニング"),
    "phase_report": said(en="Report", ru="Отчёт", zh="报告", ko="보고서", ja="レポート"),
    "iteration_phase": said(
        en="Iteration {iteration}: {phase}",
        ru="Итерация {iteration}: {phase}",
        zh="第 {iteration} 轮迭代：{phase}",
        ko="이터레이션 {iteration}: {phase}",
        ja="イテレーション {iteration}：{phase}",
    ),
    "done_of_total": said(
        en="{done} of {total} {unit}",
        ru="{done} из {total}, {unit}",
        zh="{done} / {total} {unit}",
        ko="{done} / {total} {unit}",
        ja="{done} / {total} {unit}",
    ),
    "per_second": said(
        en="{rate} per second", ru="{rate} в секунду", zh="每秒 {rate}", ko="초당 {rate}", ja="毎秒 {rate}"
    ),
    "remaining": said(en="{time} left", ru="осталось {time}", zh="剩余 {time}", ko="{time} 남음", ja="残り {time}"),
    "unit_rows": said(en="rows", ru="строк", zh="行", ko="행", ja="行"),
    "unit_sequences": said(en="sequences", ru="последовательностей", zh="条序列", ko="시퀀스", ja="シーケンス"),
    "unit_tokens": said(en="tokens", ru="токенов", zh="个 token", ko="토큰", ja="トークン"),
    "unit_steps": said(en="steps", ru="шагов", zh="步", ko="스텝", ja="ステップ"),
    "starting": said(en="Starting…", ru="Запускается…", zh="正在启动……", ko="시작하는 중…", ja="開始しています…"),
    "aborting": said(
        en="Aborting: waiting until everything has stopped…",
        ru="Прерывание: ожидание остановки всех процессов…",
        zh="正在中断：等待所有进程停止……",
        ko="중단하는 중: 모두 멈출 때까지 기다립니다…",
        ja="中断しています：すべてが停止するのを待っています…",
    ),
    "aborted": said(
        en="Aborted. Start continues where it stopped.",
        ru="Прервано. «Начать» продолжит с места остановки.",
        zh="已中断。点击“开始”将从中断处继续。",
        ko="중단되었습니다. ‘시작’을 누르면 멈춘 곳에서 이어집니다.",
        ja="中断しました。「開始」で続きから再開します。",
    ),
    "finished": said(en="Finished.", ru="Завершено.", zh="训练完毕。", ko="완료되었습니다.", ja="完了しました。"),
    "failed": said(
        en="Failed with exit code {code}.",
        ru="Ошибка, код завершения {code}.",
        zh="运行出错，退出码 {code}。",
        ko="실패했습니다. 종료 코드 {code}.",
        ja="失敗しました。終了コード {code}。",
    ),
}

RESULTS: dict[str, Translations] = {
    "column_theta": said(en="Checkpoint", ru="Контрольная точка", zh="检查点", ko="체크포인트", ja="チェックポイント"),
    "column_iteration": said(en="Iteration", ru="Итерация", zh="迭代轮次", ko="이터레이션", ja="イテレーション"),
    "column_reward_accuracy": said(
        en="Reward accuracy", ru="Точность вознаграждений", zh="奖励准确率", ko="보상 정확도", ja="報酬精度"
    ),
    "column_held_out_accuracy": said(
        en="Held-out accuracy",
        ru="Точность на валидации",
        zh="验证集准确率",
        ko="검증 정확도",
        ja="検証精度",
    ),
    "column_task_accuracy": said(
        en="Task accuracy", ru="Точность на задаче", zh="任务准确率", ko="태스크 정확도", ja="タスク精度"
    ),
    "column_loss": said(en="Loss", ru="Потери", zh="损失", ko="손실", ja="損失"),
    "column_target_reward": said(
        en="Target reward", ru="Вознаграждение цели", zh="目标奖励", ko="목표 보상", ja="目標報酬"
    ),
    "column_margin": said(en="Margin", ru="Разница вознаграждений", zh="奖励间隔", ko="마진", ja="マージン"),
    "column_player_weight": said(
        en="Player weight", ru="Вес игрока", zh="玩家权重", ko="플레이어 가중치", ja="プレイヤーの重み"
    ),
    "column_status": said(en="Status", ru="Состояние", zh="状态", ko="상태", ja="状態"),
    "column_seconds": said(
        en="Seconds: generation / scoring / training",
        ru="Секунды: генерация / оценка / обучение",
        zh="秒数：生成 / 评分 / 训练",
        ko="초: 생성 / 점수 계산 / 학습",
        ja="秒：生成 / 採点 / トレーニング",
    ),
    "column_triplets": said(en="Triplets", ru="Троек", zh="三元组", ko="트리플릿", ja="トリプレット"),
    "column_tokens": said(
        en="Generated tokens",
        ru="Сгенерировано токенов",
        zh="生成的 token",
        ko="생성된 토큰",
        ja="生成トークン",
    ),
    "status_finished": said(en="finished", ru="завершена", zh="已完成", ko="완료", ja="完了"),
    "status_training": said(en="not finished", ru="не завершена", zh="未完成", ko="미완료", ja="未完了"),
    "status_waiting": said(en="not trained yet", ru="ещё не обучена", zh="尚未训练", ko="학습 전", ja="未学習"),
    "chart_step": said(en="Step", ru="Шаг", zh="步数", ko="스텝", ja="ステップ"),
    "chart_empty": said(
        en="No steps logged yet.",
        ru="Шаги ещё не записаны.",
        zh="尚无训练记录。",
        ko="아직 기록된 스텝이 없습니다.",
        ja="まだ記録されたステップはありません。",
    ),
    "open_report": said(
        en="Open the report", ru="Открыть отчёт", zh="打开报告", ko="보고서 열기", ja="レポートを開く"
    ),
    "no_report": said(
        en="The report is made when the first iteration is finished.",
        ru="Отчёт создаётся после завершения первой итерации.",
        zh="首轮迭代完成后生成报告。",
        ko="첫 이터레이션이 끝나면 보고서가 만들어집니다.",
        ja="最初のイテレーションが完了するとレポートが作成されます。",
    ),
}

SETTINGS: dict[str, Translations] = {
    "refused": said(
        en="Nothing was started:",
        ru="Ничего не запущено:",
        zh="未启动任何任务：",
        ko="아무것도 시작하지 않았습니다:",
        ja="何も開始していません：",
    ),
    "filled_in": said(
        en="Iteration {iteration} of {run} filled in from what is on disk.",
        ru="Итерация {iteration} запуска {run} заполнена по данным на диске.",
        zh="已根据磁盘内容填入 {run} 的第 {iteration} 轮迭代。",
        ko="디스크의 내용으로 {run}의 이터레이션 {iteration}을 채웠습니다.",
        ja="ディスクの内容から {run} のイテレーション {iteration} を入力しました。",
    ),
    "seam_missing": said(
        en="This LlamaBoard ({version}) does not offer what the TPAW tab needs: {missing}.",
        ru="В этой версии LlamaBoard ({version}) нет того, что нужно вкладке TPAW: {missing}.",
        zh="当前 LlamaBoard（{version}）缺少 TPAW 页面所需的接口：{missing}。",
        ko="이 LlamaBoard({version})에는 TPAW 탭에 필요한 것이 없습니다: {missing}.",
        ja="この LlamaBoard（{version}）には TPAW タブに必要なものがありません：{missing}。",
    ),
}

BROWSER: dict[str, Translations] = {
    "choice_all": said(en="All", ru="Все", zh="全部", ko="전체", ja="すべて"),
    "choice_only": said(en="Only these", ru="Только такие", zh="仅此类", ko="해당만", ja="該当のみ"),
    "choice_without": said(en="Without these", ru="Без таких", zh="排除此类", ko="해당 제외", ja="該当を除く"),
    "browser_prompt": said(
        en="Prompt · row {row}",
        ru="Промпт · строка {row}",
        zh="提示词 · 第 {row} 行",
        ko="프롬프트 · {row}행",
        ja="プロンプト · {row} 行目",
    ),
    "browser_target": said(en="Target", ru="Целевой ответ", zh="目标回答", ko="목표 응답", ja="目標応答"),
    "browser_generated": said(
        en="Generated by {theta}",
        ru="Сгенерировано {theta}",
        zh="由 {theta} 生成",
        ko="{theta}이(가) 생성",
        ja="{theta} が生成",
    ),
    "browser_equal": said(
        en="equal to the target", ru="совпадает с целевым", zh="与目标相同", ko="목표와 동일", ja="目標と同一"
    ),
    "browser_truncated": said(
        en="cut at the length limit",
        ru="обрезано по длине",
        zh="达到长度上限被截断",
        ko="길이 제한에서 잘림",
        ja="長さ制限で切断",
    ),
    "browser_counts": said(
        en="{matching} of {total} triplets match · equal {equal} · truncated {truncated} · page {page} of {pages}",
        ru="Подходит троек: {matching} из {total} · равны {equal} · обрезаны {truncated} · страница {page} из {pages}",
        zh="共 {total} 个三元组，匹配 {matching} 个 · 相同 {equal} · 截断 {truncated} · 第 {page} / {pages} 页",
        ko="트리플릿 {total}개 중 {matching}개 일치 · 동일 {equal} · 잘림 {truncated} · 페이지 {page} / {pages}",
        ja="トリプレット {total} 件中 {matching} 件が一致 · 同一 {equal} · 切断 {truncated} · ページ {page} / {pages}",
    ),
    "browser_none": said(
        en="No triplets match.",
        ru="Подходящих троек нет.",
        zh="没有匹配的三元组。",
        ko="일치하는 트리플릿이 없습니다.",
        ja="一致するトリプレットはありません。",
    ),
    "browser_choose": said(
        en="Please choose a run or a triplet file.",
        ru="Пожалуйста, выберите запуск или файл троек.",
        zh="请选择运行或三元组文件。",
        ko="실행 또는 트리플릿 파일을 선택하십시오.",
        ja="ランまたはトリプレットファイルを選択してください。",
    ),
}

CHAT: dict[str, Translations] = {
    "chat_choose": said(
        en="Please choose a run and two checkpoints.",
        ru="Пожалуйста, выберите запуск и две контрольные точки.",
        zh="请选择运行和两个检查点。",
        ko="실행과 두 체크포인트를 선택하십시오.",
        ja="ランと 2 つのチェックポイントを選択してください。",
    ),
    "chat_loading": said(
        en="Loading {theta}…",
        ru="Загрузка {theta}…",
        zh="正在加载 {theta}……",
        ko="{theta} 로딩 중…",
        ja="{theta} をロード中…",
    ),
    "chat_loaded": said(
        en="{first} and {second} are loaded, ask them something.",
        ru="{first} и {second} загружены, задайте вопрос.",
        zh="{first} 与 {second} 已加载，可以提问了。",
        ko="{first}와(과) {second}이(가) 로드되었습니다. 질문해 보십시오.",
        ja="{first} と {second} がロードされました。質問してください。",
    ),
    "chat_exists": said(
        en="{first} and {second} are loaded, please unload them first.",
        ru="{first} и {second} уже загружены, сначала выгрузите их.",
        zh="{first} 与 {second} 已加载，请先卸载。",
        ko="{first}와(과) {second}이(가) 로드되어 있습니다. 먼저 언로드하십시오.",
        ja="{first} と {second} がロードされています。先にアンロードしてください。",
    ),
    "chat_unloaded": said(
        en="Nothing is loaded.",
        ru="Ничего не загружено.",
        zh="未加载模型。",
        ko="로드된 모델이 없습니다.",
        ja="モデルはロードされていません。",
    ),
    "chat_failed": said(
        en="That did not work: {error}",
        ru="Не получилось: {error}",
        zh="操作失败：{error}",
        ko="실패했습니다: {error}",
        ja="失敗しました：{error}",
    ),
    "chat_while_playing": said(
        en="Self-play is running here; memory of the device may not suffice for two more models.",
        ru="Здесь идёт самоигра; памяти устройства может не хватить ещё на две модели.",
        zh="本机正在进行自博弈，设备显存可能不足以再加载两个模型。",
        ko="셀프 플레이가 실행 중입니다. 모델 두 개를 더 올리기에는 장치 메모리가 부족할 수 있습니다.",
        ja="セルフプレイの実行中です。さらに 2 つのモデルにはメモリが足りない可能性があります。",
    ),
    "chat_empty": said(
        en="Please type a question.",
        ru="Пожалуйста, введите вопрос.",
        zh="请输入问题。",
        ko="질문을 입력하십시오.",
        ja="質問を入力してください。",
    ),
}

MESSAGES: dict[str, Translations] = {**PROGRESS, **RESULTS, **SETTINGS, **BROWSER, **CHAT}
