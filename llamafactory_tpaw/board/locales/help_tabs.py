# SPDX-License-Identifier: Apache-2.0
"""Hover help of the triplet browser and of the chat with two checkpoints."""

from .language import Translations, said


BROWSER: dict[str, Translations] = {
    "tpaw_browser_run": said(
        en="Runs of the chosen model and finetuning method. Without one, all triplet files of the dataset folder.",
        ru="Запуски выбранной модели и метода дообучения. Без выбора — все файлы троек каталога данных.",
        zh="所选模型和微调方法的运行。不选择则列出数据目录中的所有三元组文件。",
        ko="선택한 모델과 파인튜닝 방법의 실행입니다. 비우면 데이터 디렉토리의 모든 트리플릿 파일을 보여 줍니다.",
        ja="選択したモデルと微調整方法のランです。空欄ならデータディレクトリの全トリプレットを表示します。",
    ),
    "tpaw_browser_file": said(
        en="Round t holds the responses that θ_t generated.",
        ru="Раунд t содержит ответы, сгенерированные θ_t.",
        zh="第 t 轮包含由 θ_t 生成的回答。",
        ko="라운드 t에는 θ_t가 생성한 응답이 있습니다.",
        ja="ラウンド t には θ_t が生成した応答が入っています。",
    ),
    "tpaw_browser_equal": said(
        en="A generated response that is the target word for word teaches nothing.",
        ru="Сгенерированный ответ, дословно равный целевому, ничему не учит.",
        zh="与目标逐字相同的生成回答不提供学习信号。",
        ko="목표와 글자 그대로 같은 생성 응답에서는 배울 것이 없습니다.",
        ja="目標と一字一句同じ生成応答からは何も学べません。",
    ),
    "tpaw_browser_truncated": said(
        en="Many of them mean that the maximum of new tokens is too low.",
        ru="Если их много, максимум новых токенов слишком мал.",
        zh="若数量较多，说明最大生成长度过小。",
        ko="많다면 응답의 최대 길이가 너무 짧은 것입니다.",
        ja="多い場合は最大生成長が短すぎます。",
    ),
    "tpaw_browser_search": said(
        en="Upper and lower case are the same. Press Enter to search.",
        ru="Регистр не учитывается. Нажмите Enter для поиска.",
        zh="不区分大小写。按回车键搜索。",
        ko="대소문자를 구분하지 않습니다. Enter를 눌러 검색하십시오.",
        ja="大文字と小文字を区別しません。Enter で検索します。",
    ),
    "tpaw_browser_page": said(
        en="Type a page and press Enter.",
        ru="Введите номер страницы и нажмите Enter.",
        zh="输入页码并按回车键。",
        ko="페이지를 입력하고 Enter를 누르십시오.",
        ja="ページを入力して Enter を押してください。",
    ),
    "tpaw_browser_refresh": said(
        en="Reads the list of runs and triplets anew.",
        ru="Перечитывает список запусков и троек.",
        zh="重新读取运行和三元组列表。",
        ko="실행과 트리플릿 목록을 다시 읽습니다.",
        ja="ランとトリプレットの一覧を読み直します。",
    ),
}

CHAT: dict[str, Translations] = {
    "tpaw_chat_run": said(
        en="Template and system prompt are filled in from the settings of the run.",
        ru="Шаблон и системный запрос подставляются из настроек запуска.",
        zh="对话模板和系统提示词将按该运行的设置填入。",
        ko="템플릿과 시스템 프롬프트를 실행의 설정에서 채웁니다.",
        ja="テンプレートとシステムプロンプトはランの設定から入力されます。",
    ),
    "tpaw_chat_first": said(
        en="θ_0 is the SFT model, θ_k the result of iteration k - 1.",
        ru="θ_0 — модель SFT, θ_k — результат итерации k − 1.",
        zh="θ_0 是 SFT 模型，θ_k 是第 k - 1 轮迭代的结果。",
        ko="θ_0은 SFT 모델이고 θ_k는 이터레이션 k - 1의 결과입니다.",
        ja="θ_0 は SFT モデル、θ_k はイテレーション k - 1 の結果です。",
    ),
    "tpaw_chat_second": said(
        en="The same checkpoint twice shows how much sampling alone changes the answer.",
        ru="Одна и та же контрольная точка дважды покажет, насколько меняет ответ само сэмплирование.",
        zh="两侧选择同一检查点，可以看出仅采样带来的差异。",
        ko="같은 체크포인트를 두 번 고르면 샘플링만으로 답이 얼마나 달라지는지 볼 수 있습니다.",
        ja="同じチェックポイントを選ぶと、サンプリングだけによる違いがわかります。",
    ),
    "tpaw_chat_template": said(
        en="The template that the run was trained with; another one asks in a form that the model does not know.",
        ru="Шаблон, с которым обучали; с другим вопрос будет в незнакомом для модели виде.",
        zh="训练时使用的模板；换用其他模板，模型将面对陌生的格式。",
        ko="학습에 쓴 템플릿입니다. 다른 템플릿이면 모델이 모르는 형식으로 묻게 됩니다.",
        ja="学習に使ったテンプレートです。別のものではモデルの知らない形式で尋ねることになります。",
    ),
    "tpaw_chat_system": said(
        en="Both checkpoints get the same. Empty takes what the run was trained with.",
        ru="Одинаков для обеих контрольных точек. Пусто — как при обучении.",
        zh="两个检查点使用相同内容。留空则采用训练时的设置。",
        ko="두 체크포인트에 똑같이 적용됩니다. 비우면 학습할 때의 것을 씁니다.",
        ja="両方に同じものが使われます。空欄なら学習時のものになります。",
    ),
    "tpaw_chat_temperature": said(
        en="0 always takes the likeliest token, so that differences come from the checkpoints alone.",
        ru="При 0 всегда берётся самый вероятный токен, и различия зависят только от контрольных точек.",
        zh="0 表示总取概率最高的 token，差异仅来自检查点本身。",
        ko="0이면 항상 가장 그럴듯한 토큰을 고르므로 차이는 체크포인트에서만 옵니다.",
        ja="0 は常に最も確率の高いトークンを選ぶため、違いはチェックポイントだけによります。",
    ),
    "tpaw_chat_top_p": said(
        en="Samples from the likeliest tokens that together reach this probability.",
        ru="Сэмплирование из самых вероятных токенов с этой суммарной вероятностью.",
        zh="从累计概率达到该值的最可能 token 中采样。",
        ko="누적 확률이 이 값에 이르는 가장 그럴듯한 토큰에서 샘플링합니다.",
        ja="累積確率がこの値に達する上位トークンからサンプリングします。",
    ),
    "tpaw_chat_max_new_tokens": said(
        en="Longest answer; what is longer ends there.",
        ru="Самый длинный ответ; более длинный обрывается.",
        zh="回答的最大长度，超出部分不再生成。",
        ko="답의 최대 길이이며, 그보다 길면 거기서 끝납니다.",
        ja="回答の最大長。それを超えるとそこで終わります。",
    ),
    "tpaw_chat_trust_remote_code": said(
        en="Off unless you know where the model comes from: its code runs with your rights on this machine.",
        ru="Включайте, только если знаете, откуда модель: её код выполняется на этой машине с вашими правами.",
        zh="除非了解模型来源，否则请保持关闭：其代码将以您的权限在本机运行。",
        ko="모델의 출처를 아는 경우가 아니면 끄십시오. 그 코드가 이 컴퓨터에서 사용자 권한으로 실행됩니다.",
        ja="モデルの出所を知っている場合以外はオフに。そのコードがこのマシンであなたの権限で実行されます。",
    ),
    "tpaw_chat_load": said(
        en="Both checkpoints are held in memory until they are unloaded.",
        ru="Обе контрольные точки остаются в памяти до выгрузки.",
        zh="两个检查点将保留在内存中，直到卸载。",
        ko="두 체크포인트는 언로드할 때까지 메모리에 남습니다.",
        ja="両方のチェックポイントはアンロードするまでメモリに残ります。",
    ),
    "tpaw_chat_unload": said(
        en="Frees the memory of both; an answer in progress ends.",
        ru="Освобождает память обеих; текущий ответ прерывается.",
        zh="释放两个模型的内存；正在生成的回答会终止。",
        ko="둘 다의 메모리를 비웁니다. 생성 중인 답은 중단됩니다.",
        ja="両方のメモリを解放します。生成中の回答は終了します。",
    ),
    "tpaw_chat_query": said(
        en="Shift and Enter send it, Enter begins a new line.",
        ru="Shift и Enter отправляют вопрос, Enter начинает новую строку.",
        zh="按 Shift + Enter 发送，按 Enter 换行。",
        ko="Shift + Enter로 보내고, Enter로 줄을 바꿉니다.",
        ja="Shift + Enter で送信、Enter で改行します。",
    ),
    "tpaw_chat_send": said(
        en="Each checkpoint sees its own earlier answers.",
        ru="Каждая контрольная точка видит свои прежние ответы.",
        zh="每个检查点只看到自己之前的回答。",
        ko="각 체크포인트는 자신의 이전 답을 봅니다.",
        ja="各チェックポイントは自分のこれまでの回答を見ます。",
    ),
    "tpaw_chat_clear": said(
        en="Both checkpoints forget the conversation.",
        ru="Обе контрольные точки забывают разговор.",
        zh="两个检查点都会忘记对话。",
        ko="두 체크포인트 모두 대화를 잊습니다.",
        ja="両方のチェックポイントが会話を忘れます。",
    ),
}

TABS = {**BROWSER, **CHAT}
